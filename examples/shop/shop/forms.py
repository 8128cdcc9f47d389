from django import forms
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.models import User

from .models import Order, Picture, SalesImport


class RegistrationForm(UserCreationForm):
    email = forms.EmailField()
    birthday = forms.DateField(required=False, widget=forms.DateInput(attrs={"type": "date"}))

    class Meta:
        model = User
        fields = ["username", "email"]


class OrderForm(forms.ModelForm):
    express = forms.BooleanField(required=False)

    class Meta:
        model = Order
        fields = ["product", "quantity", "card"]


class PictureForm(forms.ModelForm):
    class Meta:
        model = Picture
        fields = ["file"]


class SalesImportForm(forms.ModelForm):
    class Meta:
        model = SalesImport
        fields = ["file"]
