from django.urls import path

from . import api, views

urlpatterns = [
    path("", views.home, name="home"),
    path("register/", views.register, name="register"),
    path("orders/", views.place_order, name="place-order"),
    path("orders/<int:order_id>/<str:task_id>/", views.show_order, name="order"),
    path("pictures/", views.add_picture, name="add-picture"),
    path("imports/", views.import_sales, name="import-sales"),
    path("reports/", views.make_report, name="make-report"),
    path("reports/<int:report_id>/", views.show_report, name="report"),
    path("prices/", views.compare_prices, name="compare-prices"),
    path("api/add/", api.add_numbers, name="add"),
    path("api/tasks/<str:task_id>/", api.task, name="task"),
]
